"""`samdiffsr serve`: a page and an HTTP API that enlarge pictures, in one process.

    app = create_app(engines, Limits(), Access())
    serve(app, open_socket("127.0.0.1", 0))

Needs the extra `web`. docs/http-api.md has the API from outside.
"""
