"""gencheck on well-known implementations and on commits with known bugs."""
