"""Between a finished run and a model: labelled scans, cached features, evaluation, the card."""
