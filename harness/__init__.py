"""What every run needs, whatever it trains. No module here knows a model, a loss or a metric.

The scripts call these modules. Nothing here calls back into a script.
"""
