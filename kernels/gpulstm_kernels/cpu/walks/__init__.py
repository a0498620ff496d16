"""How time is walked: a whole sequence at a time, or step by step."""
