//! `/lb/tasks`: the list of tasks, one of them, and its cancellation.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::document::Refusal;
use crate::gateway::Gateway;
use crate::rejection::{Kind, Rejection};
use crate::tasks::cancel::{cancel, unknown};
use crate::tasks::{TaskState, TaskView};

/// Tasks in a reply when no limit is given.
const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1000;

/// The endpoints.
pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(one, remove))
}

/// Tasks, the newest first
#[derive(Debug, Serialize, ToSchema)]
struct Page {
    tasks: Vec<TaskView>,
    total: usize,
    limit: usize,
    offset: usize,
}

/// Which tasks are asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    state: Option<TaskState>,
    limit: usize,
    offset: usize,
}

impl Wanted {
    fn of(query: &HashMap<String, String>) -> Result<Self, Rejection> {
        let given = |name: &str| query.get(name).map(|text| text.trim()).filter(|t| !t.is_empty());
        let state = given("state").map(|name| {
            TaskState::named(name).ok_or_else(|| {
                let names = TaskState::ALL.map(TaskState::name).join(", ");
                invalid("state", name, &format!("use one of {names}, or leave it out"))
            })
        });
        let limit = given("limit").map(|text| {
            let limit = text.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
            limit.ok_or_else(|| invalid("limit", text, "use a whole number from 1 to 1000"))
        });
        let offset = given("offset").map(|text| {
            text.parse().map_err(|_| invalid("offset", text, "use a whole number from 0"))
        });
        Ok(Self {
            state: state.transpose()?,
            limit: limit.transpose()?.unwrap_or(DEFAULT_LIMIT),
            offset: offset.transpose()?.unwrap_or(0),
        })
    }
}

fn invalid(name: &str, value: &str, cure: &str) -> Rejection {
    let shown: String = value.chars().take(80).collect();
    Rejection::new(Kind::InvalidValue, format!("{name} is {shown:?}")).cure(cure)
}

/// Lists the prompts that passed, the newest first
#[utoipa::path(get, path = "/lb/tasks", tag = "tasks", params(
    ("state" = Option<TaskState>, Query, description = "Only those in this state"),
    ("limit" = Option<u32>, Query, minimum = 1, maximum = 1000, description = "At most so many; 100 if not given"),
    ("offset" = Option<u32>, Query, description = "Leave out so many of the newest")),
    responses((status = 200, description = "The tasks", body = Page)))]
async fn list(
    State(gateway): State<Arc<Gateway>>,
    query: Result<Query<HashMap<String, String>>, QueryRejection>,
) -> Result<Json<Page>, Rejection> {
    let Query(query) = query.map_err(|error| {
        Rejection::new(Kind::InvalidValue, error.body_text())
            .cure("the query takes state, limit and offset")
    })?;
    let Wanted { state, limit, offset } = Wanted::of(&query)?;
    let (tasks, total) = gateway.tasks.list(state, limit, offset);
    Ok(Json(Page { tasks, total, limit, offset }))
}

/// An id that cannot be read is nobody's.
type Id = Result<Path<String>, PathRejection>;

/// Shows one task
#[utoipa::path(get, path = "/lb/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The prompt's id")), responses(
    (status = 200, description = "The task", body = TaskView),
    (status = 404, description = "No task has this id", body = Refusal)))]
async fn one(State(gateway): State<Arc<Gateway>>, id: Id) -> Result<Json<TaskView>, Rejection> {
    let Path(id) = id.map_err(|_| unknown())?;
    gateway.tasks.get(&id).map(|(_, task)| Json(task)).ok_or_else(unknown)
}

/// Cancels a task: deletes it while it waits, interrupts it while it runs
#[utoipa::path(delete, path = "/lb/tasks/{id}", tag = "tasks",
    params(("id" = String, Path, description = "The prompt's id")), responses(
    (status = 200, description = "The task as it is now", body = TaskView),
    (status = 404, description = "No task has this id", body = Refusal),
    (status = 409, description = "It had ended", body = Refusal),
    (status = 502, description = "Its backend does not answer", body = Refusal)))]
async fn remove(State(gateway): State<Arc<Gateway>>, id: Id) -> Result<Json<TaskView>, Rejection> {
    let Path(id) = id.map_err(|_| unknown())?;
    match gateway.pool() {
        Some(pool) => pool.cancel_task(&id).await.map(Json),
        None => cancel(&gateway, &id).await.map(Json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(pairs: &[(&str, &str)]) -> Result<Wanted, Rejection> {
        let owned = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Wanted::of(&owned.collect())
    }

    #[test]
    fn nothing_asked_is_the_first_hundred() {
        let all = Wanted { state: None, limit: 100, offset: 0 };
        assert_eq!(wanted(&[]), Ok(all));
        let some = Wanted { state: Some(TaskState::Failed), limit: 7, offset: 14 };
        assert_eq!(wanted(&[("state", "failed"), ("limit", "7"), ("offset", "14")]), Ok(some));
    }

    #[test]
    fn a_bad_value_is_named_with_its_cure() {
        for (name, value) in [
            ("state", "done"),
            ("limit", "0"),
            ("limit", "1001"),
            ("limit", "-1"),
            ("limit", "x"),
            ("offset", "-1"),
            ("offset", "1.5"),
            ("offset", "99999999999999999999999"),
        ] {
            let refused = wanted(&[(name, value)]).unwrap_err();
            assert_eq!(refused.kind, Kind::InvalidValue);
            assert!(refused.message.contains(name) && refused.message.contains(value));
            assert!(!refused.details.is_empty());
        }
    }
}
