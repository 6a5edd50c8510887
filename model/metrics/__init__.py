"""Metrics of binary and regression labels, overall and per scenario, with intervals over users.

`definitions` names the metrics and defines them. `exact` computes all of them from scored rows:
`ranking` gives what each row and each user or impression contributes to AUC, average precision,
GAUC, NDCG and recall, `user_sums` sums the contributions per user, `regression` does so for a
regression label, and `bootstrap` resamples users for intervals. `combined` reads the formula of a
combined score. `streaming` computes AUC and the losses from histograms and sums that ranks can add
up, while training runs. `curves` computes the curves of a report: score distribution, reliability
diagram, ROC.
"""
