"""Language models: loading, adapters, the residual stream, log-probabilities, chat templates."""
