"""attachd: resumable uploads for chat attachments.

The idea in one line: request -> Intent -> decide -> Decision -> effects -> Outcome -> response.

Layers, lowest first; an import may only point down or sideways within layer 0
(`tests/unit/test_layers.py` reads every import and says why one is wrong):

0. pure: `model`, `hashing`, `links`, `settings`, `protocol/`, `storage/parts`. No clocks, no
   randomness, no I/O, no `async`: the time and new ids are arguments.
1. ports: `storage/base`, `metadata/base`, `leases`, `events`, `metrics`, `clock`. What the use-cases need,
   said without naming who provides it.
2. adapters: `storage/filesystem`, `metadata/sql`. One third party each, never each other.
3. use-cases: `uploads`, `downloads`, `janitor`. What happens, in which order.
4. web: `web/`. aiohttp.web lives here and nowhere else.
5. wiring: `runtime`, `cli`. Everything may be named here; the environment is read here only.
"""

__version__ = "0.1.0"
