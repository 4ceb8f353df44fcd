"""What every run needs, whatever it trains.

The scripts call these modules. Nothing here imports a script, or knows its model, losses or metrics
by name.
"""
