"""The dfm-engine pipeline: real clips in, a labelled and screened data set out."""
