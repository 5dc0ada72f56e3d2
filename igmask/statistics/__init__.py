"""What may be chance, and what not: of records, without a network."""

from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)  # of an interval of 95 %
