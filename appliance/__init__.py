"""Model Appliance: run other people's models, safely, on a company's own machine.

One process, six parts. Imports point down this list only (checked by ``packaging/check``):

    __main__   starts ``cli``
    cli        the command line; the only package that prints
    app        composition root: settings in, running appliance out
    api        one file per public HTTP contract          serve   Hypercorn: TLS, sockets, drain
    wire       HTTP mechanics: parsing, limits, problem+json
    node       the life of the process: uninitialised, sealed, ready, draining
    nested     calls that calls make, in the name of whoever made the first
    comparison data sets and recorded calls through several versions, and what that shows
    canary     candidates watched against what they follow, stepped, held, aborted
    schedules  jobs submitted by the clock
    webhooks   addresses told of events, signed, until they have them
    samples    calls that are kept, sealed, where an owner asked for it
    afterwards who is told of an answered call: watch, samples
    shadow     calls repeated to versions whose replies are dropped
    watch      what versions with a baseline are called with: counted, judged, told
    routing    which version answers a call: routes and their revisions
    jobs       calls that outlive their request           intake  registrations that do
    batches    tables scored row by row: which is next    batch_scoring  the calls of one
    batch_output  a batch's results as a table, streamed or written to a folder
    job_log    what a job's model prints, told while it works
    invoke     one call, end to end                       lifecycle  every change of a model
    reservations  sandboxes kept loaded before anybody calls
    tracking   training runs, drafts and their files      artifacts  one file of a version
    provision  a version's files from store to sandbox    doctor  checks of the host
    trial      what a version's first sandbox shows       supply  runtimes and dependency sets
    timetable  when cron fields are due, in a time zone
    batch_rows  rows as bodies, answers as rows
    traffic    how a route's arms share calls, purely     effects  statistics of two arms
    lineage    what a version was made from, as a graph   catalogue  what is registered already
    drift      how far inputs and answers are from a baseline, purely
    policy     who may do what                            auth    who is calling
    steps      pipelines: what their file says, and what each step is given
    conventions  manifests of models that bring none: MLflow folders, ONNX, pickles, skops
    archive    the upload parser                          manifest  what a model declares
    egress     where models may connect to
    probe      what a model file says about itself        yaml_text  YAML as plain text, bounded
    inputs     whether a body is what its version takes
    room       memory of bodies and answers on their way
    store      sealed ledger, DuckDB projection, blobs    sandbox rootless Podman
    tables     strangers' tables, parsed in a child without keys
    folders    files in folders that IT lets batches use
    followers  who waits until something changes          job_queue  which job runs next
    events     the closed list of audit events            config, metrics
    signing    signatures of what leaves                  tarstream  tar, read strictly
    standing   the nouns of schedules, webhooks and deliveries
    tracked    the nouns of training runs
    batch_records  the nouns of batches
    records    the nouns                                  targets, clock, errors

Read ``ARCHITECTURE.md`` for the numbered invariants and ``SECURITY-PROMISES.md`` for what is
promised and which test proves it.
"""

__version__ = "0.1.0"
