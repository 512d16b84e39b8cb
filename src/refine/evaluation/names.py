"""Names of the metrics, apart from their code: what only sums up need not load PyTorch."""

USER_METRICS = ("recall", "ndcg", "precision", "mrr", "hit_rate")
"""Metrics of one user, averaged over users."""

LIST_METRICS = ("coverage", "gini")
"""Metrics of all users' lists together."""
