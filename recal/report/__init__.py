"""Tables, text, pages and plots of results."""
