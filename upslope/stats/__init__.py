"""Small exact statistics: intervals, paired comparisons, bootstraps, prevalence under an imperfect detector."""
