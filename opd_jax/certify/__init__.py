"""Floor 5. Gradient certificates: what an estimator is in expectation, by enumeration in float64."""
