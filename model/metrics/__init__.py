"""Metrics of click models, overall and per scenario, with bootstrap intervals over users.

`definitions` names the metrics and defines them. `exact` computes all of them from scored rows:
`ranking` gives what each row and each user contributes to AUC, average precision, GAUC, NDCG and
recall, `user_sums` sums the contributions per user, and `bootstrap` resamples users for intervals.
`streaming` computes AUC and the loss metrics from histograms that ranks can add up, while training
runs. `curves` computes the curves of a report: score distribution, reliability diagram, ROC.
"""
