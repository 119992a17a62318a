"""The page of ``orlhf-ext report``: runs as they are read, their charts, and the HTML around them."""
