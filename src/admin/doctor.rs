//! `GET /lb/doctor`: in what the backends differ, read from all of them now, and what prompts asked
//! for that none has.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Admin;
use crate::inventory::{self, Difference};

/// Differences listed at most.
const MAX_LISTED: usize = 10_000;

/// The routes.
pub(super) fn routes() -> OpenApiRouter<Arc<Admin>> {
    OpenApiRouter::new().routes(routes!(doctor))
}

/// In what the backends differ.
#[derive(Debug, Serialize, ToSchema)]
struct Diagnosis {
    /// Versions, nodes and models that some have and others lack; in pool mode also those that
    /// prompts of the last day asked for and none has; the first 10,000
    differences: Vec<Difference>,
    /// How many there are
    total: usize,
    /// Backends that were compared
    compared: Vec<String>,
    /// Backends that could not be read: down, too slow, or not telling
    unread: Vec<String>,
}

/// Reads versions, nodes and models of all backends that are up, and tells the differences
///
/// Takes up to 20 seconds; calls within 5 seconds share one reading.
#[utoipa::path(get, path = "/lb/doctor", tag = "backends",
    responses((status = 200, description = "The differences", body = Diagnosis)))]
async fn doctor(State(admin): State<Arc<Admin>>) -> Json<Diagnosis> {
    let survey = admin.gateway.prober.surveyor().survey().await;
    let mut differences = inventory::differences(&survey.seen);
    if let Some(pool) = admin.gateway.pool() {
        differences.extend(inventory::lacked_by_all(&survey.seen, pool.wanted()));
    }
    let total = differences.len();
    differences.truncate(MAX_LISTED);
    let compared = survey.seen.iter().map(|seen| seen.name.clone()).collect();
    Json(Diagnosis { differences, total, compared, unread: survey.unread.clone() })
}
