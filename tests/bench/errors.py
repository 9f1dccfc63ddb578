class BenchError(Exception):
    """Nothing sensible can be measured; the message is for the person at the terminal."""
