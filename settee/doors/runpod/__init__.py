"""The RunPod door: a serverless worker under RunPod's own SDK.

    sdk        the SDK, imported quickly, and what we know about the version that is installed
    door       one job: open, run in the engine's thread, render; cancel and shutdown
    sealed     encrypted jobs in, encrypted results out
    render     a Result or an error as RunPod's callers get it
    progress   throttled updates that never outlive their job
    take       jobs asked for, none of them lost
    wire       results posted to RunPod, once serialised
    loop       the SDK's job loop without its sleeps
    signals    SIGTERM and SIGINT, around the SDK's own handlers
    worker     `handler(job)` and `main()`

Importing this package imports none of them: the SDK alone takes a moment.
"""
