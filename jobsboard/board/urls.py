"""The routes of the board's pages. Every view carries its permission (`jobsboard.roles.require`)."""

from django.urls import URLPattern, URLResolver, path

from jobsboard.board.acting import act
from jobsboard.board.alert import alert
from jobsboard.board.alert_acting import act_on_alert, act_on_rule
from jobsboard.board.alerts import alerts
from jobsboard.board.audit import audit
from jobsboard.board.bulk import bulk
from jobsboard.board.dead_letter import dead_letter, verdict
from jobsboard.board.dead_letters import dead_letters
from jobsboard.board.dependencies import dependencies
from jobsboard.board.dependency_acting import act_on_dependency
from jobsboard.board.editing import edit
from jobsboard.board.exporting import export
from jobsboard.board.group_acting import act_on_group
from jobsboard.board.groups import group
from jobsboard.board.job_types import job_type, job_types
from jobsboard.board.jobs import job, jobs, search
from jobsboard.board.overview import overview
from jobsboard.board.pausing import turn
from jobsboard.board.probes import probes_view, send_probe
from jobsboard.board.queue_acting import act_on_queue
from jobsboard.board.queues import queues
from jobsboard.board.replay_acting import act_on_plan
from jobsboard.board.replay_one import replay
from jobsboard.board.replays import replay_plan, replays
from jobsboard.board.revealing import reveal
from jobsboard.board.schedule_acting import act_on_schedule
from jobsboard.board.schedules import schedules
from jobsboard.board.twice import twice
from jobsboard.board.webhook_acting import act_on_endpoint, resend
from jobsboard.board.webhooks import webhooks

# These look before they act; the other verbs of a job are `act`'s, whose names reverse all of them.
_LOOKING = {"verdict": verdict, "replay": replay, "edit": edit, "reveal": reveal}

urlpatterns: list[URLPattern | URLResolver] = [
    path("", overview, name="overview"),
    path("types/", job_types, name="job-types"),
    path("types/<str:name>/", job_type, name="job-type"),
    path("types/<str:name>/twice/", twice, name="job-type-twice"),
    path("types/<str:name>/<slug:verb>/", turn, name="job-type-turn"),
    path("jobs/", jobs, name="jobs"),
    path("jobs/<uuid:job_id>/", job, name="job"),
    *(path(f"jobs/<uuid:job_id>/{verb}/", view, {"place": "jobs"}) for verb, view in _LOOKING.items()),
    path("jobs/<uuid:job_id>/<slug:verb>/", act, {"place": "jobs"}, name="job-act"),
    path("dlq/", dead_letters, name="dead-letters"),
    path("dlq/export", export, name="dead-letters-export"),
    path("dlq/bulk/", bulk, name="bulk"),
    path("dlq/groups/<int:group_id>/", group, name="failure-group"),
    path("dlq/groups/<int:group_id>/<slug:verb>/", act_on_group, name="failure-group-act"),
    path("dlq/<uuid:job_id>/", dead_letter, name="dead-letter"),
    *(path(f"dlq/<uuid:job_id>/{verb}/", view, {"place": "dlq"}) for verb, view in _LOOKING.items()),
    path("dlq/<uuid:job_id>/<slug:verb>/", act, {"place": "dlq"}, name="dead-letter-act"),
    path("replays/", replays, name="replays"),
    path("replays/<uuid:plan_id>/", replay_plan, name="replay-plan"),
    path("replays/<uuid:plan_id>/<slug:verb>/", act_on_plan, name="replay-plan-act"),
    path("queues/", queues, name="queues"),
    path("queues/<str:name>/<slug:verb>/", act_on_queue, name="queue-act"),
    path("dependencies/", dependencies, name="dependencies"),
    path("dependencies/<str:name>/<slug:verb>/", act_on_dependency, name="dependency-act"),
    path("probes/", probes_view, name="probes"),
    path("probes/<str:name>/send/", send_probe, name="probe-send"),
    path("schedules/", schedules, name="schedules"),
    path("schedules/<str:name>/<slug:verb>/", act_on_schedule, name="schedule-act"),
    path("alerts/", alerts, name="alerts"),
    path("alerts/rules/<int:rule_id>/<slug:verb>/", act_on_rule, name="alert-rule-act"),
    path("alerts/<int:alert_id>/", alert, name="alert"),
    path("alerts/<int:alert_id>/<slug:verb>/", act_on_alert, name="alert-act"),
    path("webhooks/", webhooks, name="webhooks"),
    path("webhooks/<int:endpoint_id>/<slug:verb>/", act_on_endpoint, name="webhook-act"),
    path("webhooks/deliveries/<slug:delivery_id>/resend/", resend, name="webhook-resend"),
    path("audit/", audit, name="audit"),
    path("search/", search, name="search"),
]
