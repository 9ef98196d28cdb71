//! Where a request goes that one server answers: static files, custom nodes' routes, files that a
//! server made.
//!
//! 1. To the backend whose prefix its query carries, the prefix taken off.
//! 2. `/view` without a prefix: the gateway's own store for what was handed in; else the one backend
//!    that has such a file, or where one of the caller's own jobs made it; else 404, never another
//!    job's file. Where callers are isolated, only what their own jobs made.
//! 3. A custom node's route: to where the caller's only running job is.
//! 4. Everything else to the caller's home, as in sticky mode. A custom node may answer there by a
//!    message to the caller's client, for which that gets a companion.

use std::sync::Arc;

use axum::Extension;
use axum::response::IntoResponse;
use http::{HeaderMap, Method, Uri};

use super::Pool;
use super::core::Phase;
use super::files::copies::Copies;
use super::files::place::Folder;
use super::files::{self, prefix};
use super::route::Route;
use crate::backend::{Backend, BackendId};
use crate::comfy::routes::{bare, query_value, unescaped};
use crate::edge::envelope::Envelope;
use crate::identity::ClientKey;
use crate::rejection::{Kind, Rejection};

/// Where a request goes.
pub enum Way {
    /// A service of this process answers it.
    Here(axum::Router),
    /// To this backend, asked for another target if that is given. There is no other.
    To(Arc<Backend>, Option<String>),
    /// To the caller's home.
    Home,
    /// Nowhere.
    Refuse(Rejection),
}

impl Pool {
    /// The way of a request.
    pub async fn way(
        self: &Arc<Self>,
        route: Route,
        method: &Method,
        target: &str,
        envelope: &Envelope,
    ) -> Way {
        let Some(routers) = self.routers.get() else { return Way::Home };
        match route {
            Route::Own if bare(target).starts_with("/upload/") => {
                Way::Here(routers.files.clone().layer(Extension(self.own(envelope.key))))
            }
            Route::Own => Way::Here(routers.own.clone()),
            Route::UserData => Way::Here(routers.userdata.clone()),
            Route::Merged => match made_in(target).filter(|_| self.is_isolated()) {
                Some(folder) => Way::Here(self.made_by(envelope.key, folder)),
                None => Way::Here(routers.merged.clone()),
            },
            Route::View | Route::Server => {
                if let Some((name, asked)) = prefix::in_query(target) {
                    if route == Route::View
                        && let Some(copy) = self.copy_of(&name, &asked).await
                    {
                        return copy;
                    }
                    return self.to_named(&name, Some(asked));
                }
                if route == Route::View {
                    return self.view(target, envelope).await;
                }
                self.elsewhere(method, target, envelope)
            }
        }
    }

    fn to_named(&self, name: &str, asked: Option<String>) -> Way {
        let view = self.fleet.view();
        match view.named(name) {
            Some(backend) if backend.live.standing().may_be_asked() => {
                Way::To(Arc::clone(backend), asked)
            }
            Some(_) => Way::Refuse(
                Rejection::new(
                    Kind::UpstreamFailed,
                    "the ComfyUI server that has this file is down",
                )
                .retry_after(5),
            ),
            None => Way::Refuse(not_here()),
        }
    }

    /// A file that is asked for without a prefix.
    async fn view(self: &Arc<Self>, target: &str, envelope: &Envelope) -> Way {
        let Ok(uri) = target.parse::<Uri>() else { return Way::Refuse(not_here()) };
        if self.files.has(&uri) {
            return Way::Here(self.shown());
        }
        let holder = self.files.holder(&uri, &self.own(envelope.key), self.is_isolated()).await;
        let view = self.fleet.view();
        match holder.and_then(|id| view.get(id)) {
            Some(backend) => Way::To(Arc::clone(backend), None),
            None => self.own_copy(uri, envelope.key).unwrap_or_else(|| Way::Refuse(not_here())),
        }
    }

    /// The copy of a file that its backend has no more, or does not give.
    async fn copy_of(&self, name: &str, asked: &str) -> Option<Way> {
        let copies = self.copies.as_ref()?;
        let file = copies.file(name, asked)?;
        let view = self.fleet.view();
        let backend = view.named(name).filter(|backend| backend.live.keeps_old());
        if let Some(backend) = backend
            && copies.is_at(backend, &file).await
        {
            return None;
        }
        Some(Way::Here(shown_copy(copies, name, asked.parse().ok()?)))
    }

    /// The copy of what the caller's own jobs made, asked for without its prefix.
    fn own_copy(&self, uri: Uri, caller: ClientKey) -> Option<Way> {
        let copies = self.copies.as_ref()?;
        let place = files::asked_place(&uri)?;
        let makers = self.made.by(caller, &place);
        let name = makers.iter().find(|name| copies.has(name, &place))?;
        Some(Way::Here(shown_copy(copies, name, uri)))
    }

    /// Lists what a caller's own jobs made.
    fn made_by(&self, caller: ClientKey, folder: Folder) -> axum::Router {
        let names = self.made.all(caller, folder);
        axum::Router::new().fallback(async move || axum::Json(names))
    }

    /// Shows files of the gateway's own store.
    fn shown(&self) -> axum::Router {
        let files = Arc::clone(&self.files);
        axum::Router::new().fallback(async move |uri: Uri, headers: HeaderMap| {
            files.view(&uri, &headers).await.unwrap_or_else(|| not_here().into_response())
        })
    }

    fn elsewhere(&self, method: &Method, target: &str, envelope: &Envelope) -> Way {
        if !is_a_custom_nodes(method, target) {
            return Way::Home;
        }
        let running = self.only_running(envelope);
        let view = self.fleet.view();
        match running.and_then(|id| view.get(id)).filter(|b| b.live.standing().may_be_asked()) {
            Some(backend) => Way::To(Arc::clone(backend), None),
            None => Way::Home,
        }
    }

    /// Where the job of a caller's runs that began first.
    pub fn running_at(&self, caller: ClientKey) -> Option<BackendId> {
        let own = self.core.lock().of(caller);
        let running = own.iter().filter_map(|view| match view.phase {
            Phase::Running(backend) => Some((view.started, backend)),
            _ => None,
        });
        running.min_by_key(|(started, _)| *started).map(|(_, backend)| backend)
    }

    /// The backend of the caller's running job, if it has just one.
    fn only_running(&self, envelope: &Envelope) -> Option<BackendId> {
        let own = self.core.lock().of(envelope.key);
        let mut running = own.iter().filter_map(|view| match view.phase {
            Phase::Running(backend) => Some(backend),
            _ => None,
        });
        let first = running.next()?;
        running.next().is_none().then_some(first)
    }
}

/// Shows a copy; `uri` asks for it without the prefix.
fn shown_copy(copies: &Arc<Copies>, name: &str, uri: Uri) -> axum::Router {
    let (copies, name) = (Arc::clone(copies), name.to_owned());
    axum::Router::new().fallback(async move |headers: HeaderMap| {
        let shown = copies.view(&name, &uri, &headers).await;
        shown.unwrap_or_else(|| not_here().into_response())
    })
}

/// The folder that a request wants listed, if it is one that jobs write to.
fn made_in(target: &str) -> Option<Folder> {
    let path = unescaped(target.split(['?', '#']).next().unwrap_or_default());
    let folder = path.strip_prefix("/internal/files/").and_then(Folder::of)?;
    (folder != Folder::Input).then_some(folder)
}

/// What ComfyUI itself answers of what goes to a server, by the first part of its path.
const COMFYUI: [&str; 10] = [
    "docs",
    "experiment",
    "extensions",
    "global_subgraphs",
    "i18n",
    "internal",
    "templates",
    "view_metadata",
    "workflow_templates",
    "ws",
];

/// Whether a custom node answers this, rather than ComfyUI or the page's folder.
pub fn is_a_custom_nodes(method: &Method, target: &str) -> bool {
    let path = bare(target);
    let first = path.split('/').nth(1).unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let is_file = reads && last.contains('.') && query_value(target, "filename").is_none();
    let is_comfyuis = first.is_empty() || COMFYUI.contains(&first);
    !is_comfyuis && !is_file
}

fn not_here() -> Rejection {
    Rejection::new(
        Kind::NotFound,
        "there is no such file, or several servers have one of that name",
    )
    .cure("ask for it with the subfolder that history names")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn custom_nodes_routes_are_told_from_comfyuis_and_the_pages() {
        let custom = |targets: &[&str]| -> Vec<bool> {
            targets.iter().map(|target| is_a_custom_nodes(&Method::GET, target)).collect()
        };
        let theirs = ["/manager/queue/start", "/api/vhs/viewvideo?filename=a.mp4", "/pysssss/text"];
        assert_eq!(custom(&theirs), [true; 3]);
        let not = ["/", "/api/", "/assets/x.js", "/extensions", "/api/i18n", "/internal/logs/raw"];
        assert_eq!(custom(&not), [false; 6]);
        assert!(is_a_custom_nodes(&Method::POST, "/impact/set/a.b"));
    }
}
