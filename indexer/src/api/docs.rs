//! `/openapi.json` and `/docs`. Owns what is said about the interface as a whole; everything else stands at the handlers.

use axum::{Json, Router, routing};
use utoipa::{
    OpenApi as _,
    openapi::{
        OpenApi,
        security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme},
    },
};
use utoipa_swagger_ui::SwaggerUi;

use super::ApiState;

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "memdex",
        description = "What every guest page on a KVM host holds, right now.\n\n\
            Errors are RFC 9457 problems with a stable `code`. The binary media types are described byte by byte in the \
            documentation of the crate `memdex-wire`. On TCP every request needs the bearer token of the host; on the \
            Unix socket the file mode decides.",
        license(name = "MIT", identifier = "MIT"),
    ),
    servers((url = "/", description = "this host")),
    tags(
        (name = "VMs", description = "Virtual machines and their pages"),
        (name = "Content", description = "Contents of pages, wherever they are on this host"),
        (name = "Events", description = "What happens"),
        (name = "Daemon", description = "The daemon itself"),
    ),
)]
struct Base;

/// The description without any resource.
pub(super) fn base() -> OpenApi {
    let mut openapi = Base::openapi();
    env!("CARGO_PKG_VERSION").clone_into(&mut openapi.info.version);
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "The token in the file $MEMDEX_TOKEN_FILE of the host, by default /etc/memdex/token",
        ))
        .build();
    openapi
        .components
        .get_or_insert_default()
        .security_schemes
        .insert("token".to_owned(), SecurityScheme::Http(scheme));
    openapi.security = Some(vec![SecurityRequirement::new::<_, _, String>("token", [])]);
    openapi
}

/// `/openapi.json`, and the pages of `/docs`, all from this binary.
pub(super) fn routes(openapi: &OpenApi) -> Router<ApiState> {
    let document = openapi.clone();
    // The page fetches it from its own origin: nothing comes from the network.
    let ui = SwaggerUi::new("/docs").config(utoipa_swagger_ui::Config::from("/openapi.json"));
    Router::new()
        .route("/openapi.json", routing::get(move || async { Json(document) }))
        .merge(Router::from(ui))
}
