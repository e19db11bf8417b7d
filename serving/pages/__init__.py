"""The usage page: what a customer, or an operator, looks at with a browser. Drawn on the server, without a script."""
