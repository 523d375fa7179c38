"""The RunPod door: a serverless worker under RunPod's own SDK.

Importing this package imports none of its modules: the SDK alone takes a moment.
"""
