"""What the protocols mean, without doing any of it.

Theory of operation. A dialect (`tus`, `put`, later `ietf`) parses a request's method and fields
into an intent (`intents`). `decide` looks at the intent, at what the metadata store knows and at
the time, and returns what to do, or raises a Refusal (`problems`). A use-case does it and returns
an outcome; the dialect renders the outcome as a Reply. So each rule exists once, whichever
dialect a client speaks, and everything here can be tested with plain values.
"""
