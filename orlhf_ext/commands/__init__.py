"""Commands that belong to no single method; nothing imports them."""
