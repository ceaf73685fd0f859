"""The pages of the web console: what people see of the same facts that the JSON API gives."""
