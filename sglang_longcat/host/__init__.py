"""What the plugin relies on in SGLang, what it tells SGLang at start-up, and what it refuses."""
