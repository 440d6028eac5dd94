"""Measuring a run, and telling what was measured. The run log's schema is docs/metrics.md.

    stages     what the time of the run's threads goes to, noted by whoever does the work
    sampler    a thread that reads machine and run once a second, into a run log
    log        reads a run log back
    verdict    names what held a run up
    report     tells it in the terminal, as CSV, as a page
    export     tells monitoring how the last runs went

Nothing of it imports more of Blobark than its errors.
"""
