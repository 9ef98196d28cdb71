//! The list of tasks with its filter.

use maud::{Markup, html};

use super::page::{Ctx, time};
use super::shown::{self, Task};
use super::words::Word;
use crate::admin::Admin;
use crate::tasks::TaskState;

/// Tasks shown at most.
pub(super) const SHOWN: usize = 50;

/// The section.
pub(super) fn section(admin: &Admin, filter: Option<&str>, ctx: Ctx<'_>) -> Markup {
    let state = filter.and_then(TaskState::named);
    let (tasks, _) = admin.gateway.tasks.list(state, SHOWN, 0);
    let tasks: Vec<Task> = tasks.iter().map(shown::read).collect();
    html! {
        section aria-labelledby="tasks-title" {
            div.heading {
                h2 id="tasks-title" { (ctx.say(Word::Tasks)) }
                form.filter method="get" action="/" data-filter="" {
                    label for="filter" { (ctx.say(Word::Filter)) }
                    select id="filter" name="state" {
                        option value="" { (ctx.say(Word::All)) }
                        @for offered in TaskState::ALL {
                            option value=(offered.name()) selected[state == Some(offered)] {
                                (ctx.say(Word::of_state(offered.name())))
                            }
                        }
                    }
                    noscript { button { (ctx.say(Word::Apply)) } }
                }
            }
            div.scroll tabindex="0" role="region" aria-labelledby="tasks-title" {
                table.tasks role="table" {
                    caption.hidden { (ctx.say(Word::TasksCaption)) }
                    thead role="rowgroup" { tr role="row" {
                        @for word in [
                            Word::TaskId, Word::State, Word::Caller, Word::Backend, Word::Created,
                            Word::Waited, Word::Took, Word::Actions,
                        ] { th scope="col" role="columnheader" { (ctx.say(word)) } }
                    } }
                    tbody id="tasks" role="rowgroup" data-empty=(ctx.say(Word::NoTasks)) data-most=(SHOWN) {
                        @for task in &tasks { (row(task, ctx)) }
                    }
                }
            }
            template id="task-row" { (row(&Task::default(), ctx)) }
        }
    }
}

fn row(task: &Task, ctx: Ctx<'_>) -> Markup {
    let state = &task.state;
    let open = matches!(state.as_str(), "queued" | "running");
    let between = |from: Option<jiff::Timestamp>, to: Option<jiff::Timestamp>| match (from, to) {
        (Some(from), Some(to)) => shown::seconds(to.duration_since(from).as_secs_f64().max(0.0)),
        _ => "–".to_owned(),
    };
    html! {
        tr role="row" data-task=(task.task_id) {
            th scope="row" role="rowheader" { code data-f="id" title=(task.task_id) { (short(&task.task_id)) } }
            td role="cell" {
                span.pill data-f="state" data-state=(state) { (ctx.say(Word::of_state(state))) }
                small.error data-f="error" { (task.error.as_deref().unwrap_or_default()) }
            }
            td role="cell" data-label=(ctx.say(Word::Caller)) { span data-f="caller" { (task.caller) } }
            td role="cell" data-label=(ctx.say(Word::Backend)) {
                span data-f="backend" { (task.backend.as_deref().unwrap_or("–")) }
            }
            td role="cell" data-label=(ctx.say(Word::Created)) data-f="created" {
                @if let Some(at) = task.created_at { (time(at)) }
            }
            td.number role="cell" data-label=(ctx.say(Word::Waited)) {
                span data-f="waited" { (between(task.created_at, task.started_at)) }
            }
            td.number role="cell" data-label=(ctx.say(Word::Took)) {
                span data-f="took" { (between(task.started_at, task.finished_at)) }
            }
            td.acts role="cell" {
                form method="post" action="/dashboard/cancel" data-f="cancel" hidden[!open] {
                    (ctx.token())
                    input type="hidden" name="task" data-f="field" value=(task.task_id);
                    button { (ctx.say(Word::Cancel)) span.hidden data-f="which" { " " (short(&task.task_id)) } }
                }
            }
        }
    }
}

fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::dashboard::words::Lang;

    #[test]
    fn a_tasks_words_are_escaped_and_only_an_open_one_can_be_cancelled() {
        let nasty = "<img src=x>";
        let mut task = Task {
            task_id: nasty.into(),
            state: "running".into(),
            caller: nasty.into(),
            backend: Some(nasty.into()),
            error: Some(nasty.into()),
            ..Task::default()
        };
        let ctx = Ctx { lang: Lang::En, csrf: "" };
        let open = row(&task, ctx).into_string();
        assert!(!open.contains("<img"), "{open}");
        assert!(!open.contains("data-f=\"cancel\" hidden"));
        task.state = "completed".into();
        assert!(row(&task, ctx).into_string().contains("data-f=\"cancel\" hidden"));
    }
}
