# The conformance model that calls: text is a command.
load_model <- function(path) {
  told <- function(expression) {
    tryCatch(expression, call_failed = function(e) paste(e$code, e$status, conditionMessage(e)))
  }
  early <- tryCatch(call_model("echo", 1), call_failed = conditionMessage)
  function(inputs) {
    word <- sub(" .*", "", inputs)
    rest <- sub("^[^ ]* ?", "", inputs)
    switch(word,
      early = early,
      text = call_model("echo:3", rest),
      values = call_model("echo", list(a = list(1, 2.5, NULL, TRUE), b = list(c = "\u00fc"))),
      bytes = call_model("echo@live", as.raw(0:255)),
      typed = call_model("echo", rest, content_type = "application/json"),
      refused = told(call_model(rest, 1)),
      through = call_model(rest, 1),
      large = told(call_model("echo", strrep("x", as.integer(rest))))
    )
  }
}
