"""The statistics that the report's claims stand on. All are functions of arrays; what draws at random does so from a seed.

scipy takes up to a second to import, which commands that compare nothing need not wait for: functions import it.
"""

from core.statistics.comparison import PairedTest, not_worse_than_best, paired_test
from core.statistics.correlation import Correlation, Line, correlation_interval, least_squares_line, pearson
from core.statistics.crossing import crossing, crossing_interval
from core.statistics.domain_pairs import PermutationTest, centred, domain_correlation_interval, domain_permutation_test
from core.statistics.intervals import Interval, Mean, bootstrap_interval, mean_interval
from core.statistics.proportions import kept_accuracy, paired_proportion_bound

__all__ = [
    "Correlation",
    "Interval",
    "Line",
    "Mean",
    "PairedTest",
    "PermutationTest",
    "bootstrap_interval",
    "centred",
    "correlation_interval",
    "crossing",
    "crossing_interval",
    "domain_correlation_interval",
    "domain_permutation_test",
    "kept_accuracy",
    "least_squares_line",
    "mean_interval",
    "not_worse_than_best",
    "paired_proportion_bound",
    "paired_test",
    "pearson",
]
