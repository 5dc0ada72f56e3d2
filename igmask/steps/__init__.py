"""A file a step of the study, with one public function of the step's name."""
