"""One page of a study, which opens anywhere: what was asked, what came out, and its images."""
