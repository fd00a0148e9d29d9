"""The methods' published configurations, and `common`, which has every key."""
