"""Differential privacy: what is done to numbers, what it costs, and who may still spend.

    mechanisms/   integers that hide a row: discrete Gaussian and Laplace noise, the grid they live on
    accounting/   what was done, as frozen events, and what it means: epsilon for a delta, a Renyi cost
    ledger/       what an owner has spent on a population of rows, durably, and what is left
    statistics/   private counts, means, quantiles and tables over rows
    local/        noise on a single record, before anybody else sees it
    auditing/     what an attack that was run proves about a claim

Nothing here knows a vault, a key of a study, or a network. The relation is zero-out throughout: neighbours
differ in one unit whose contribution is replaced by nothing, and row counts are public.
"""
