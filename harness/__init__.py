"""What every run needs, whatever it trains.

The scripts call these modules. Nothing here knows a script's model, losses or metrics by name, or
calls back into it.
"""
