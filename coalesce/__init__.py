"""coalesce: a transparent pipelining proxy for Redis and Valkey."""
