"""The RunPod door: a serverless worker under RunPod's own SDK.

    sdk        the SDK, imported quickly, and what we know about the version that is installed
    door       one job: open, run in the engine's thread, render; its progress; cancel and shutdown
    render     a Result or an error as RunPod's callers get it, sealed for those who sealed their job
    wire       jobs asked for and results posted, none of them lost
    loop       the SDK's job loop without its sleeps
    worker     `handler(job)` and `main()`; SIGTERM and SIGINT around the SDK's own handlers

Importing this package imports none of them: the SDK alone takes a moment.
"""
