"""What the conformance checker asks of a server, and what it makes of the answers.

A check is a name, a promise, a probe and a judge. The probe asks: it sends the requests of one scenario and returns
what came. The judge is pure: it says what is wrong with that, or that it cannot tell. Several checks may judge one
probe; it is sent once.

`asking` sends, `dialects` puts one question into either wire format, `probes` are the scenarios, `judges` judge them,
and `table` says which belong together and runs them.
"""
