"""Configuration: the typed schema, composition from conf/, checks and the plan."""
