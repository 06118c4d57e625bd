"""The HTTP edge: the only place that knows aiohttp.web."""
