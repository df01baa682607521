# The R runner: the process inside a sandbox that loads one model and answers its calls.
#
# Owns: the guest half of PROTOCOL.md for R; R itself and jsonlite, one file. R cannot speak to a unix
# socket: native_runner.pl unpacks the artifact and carries the bytes, standard input to here and the
# descriptor APPLIANCE_OUT from here.
# Never: is trusted. Model code runs in this very process and may do to it what it likes.
# Read next: PROTOCOL.md, native_runner.pl, monitor.pl.
#
# A model: `entry = "model.R:load_model"`, a function that takes the path of the folder and returns
# a function of the inputs, or a list with one named predict. Inputs: JSON as lists, exactly as
# nested as it came (jsonlite's simplifyVector = FALSE); text as one string; anything else as raw.
# Answers: one string as text, raw as bytes, anything else as JSON, vectors of length 1 as scalars
# (wrap in I() what must stay an array), NA and NaN as null.
#
# A model whose manifest declares `calls` calls others of its tenant while it answers:
# call_model("scorer@live", inputs) returns what that answered, read like inputs. What was refused or
# failed is an error of class call_failed, with the problem's code and status.
#
# A model without code: `entry = "@rds:FILE"`, a fitted model as saveRDS wrote it, answered by R's own
# predict(); `[options] type` is its type (a glm's is "response" unless told). Inputs: a table, in any
# form that python_tables.py lists. Answer: {"predictions": [...]}, one a row.

local({
  runner <- environment()
  input <- file("stdin", "rb", raw = TRUE)
  output <- file(paste0("/proc/self/fd/", Sys.getenv("APPLIANCE_OUT")), "wb", raw = TRUE)

  read_exactly <- function(size) {
    data <- readBin(input, "raw", size)
    if (length(data) < size) quit(save = "no") # the appliance is gone
    data
  }

  number <- function(bytes) sum(as.numeric(bytes) * 256^((length(bytes) - 1):0))

  bytes_of <- function(value, size) as.raw((value %/% 256^((size - 1):0)) %% 256)

  receive <- function() {
    prefix <- read_exactly(12)
    text <- rawToChar(read_exactly(number(prefix[1:4])))
    Encoding(text) <- "UTF-8"
    size <- number(prefix[5:12])
    list(
      header = jsonlite::parse_json(text, simplifyVector = FALSE),
      body = if (size > 0) read_exactly(size) else raw(0)
    )
  }

  # `header` is a JSON text.
  send <- function(header, body = raw(0)) {
    header <- charToRaw(enc2utf8(header))
    writeBin(c(bytes_of(length(header), 4), bytes_of(length(body), 8), header), output)
    if (length(body)) writeBin(body, output)
    flush(output)
  }

  quoted <- function(text) {
    text <- iconv(as.character(text), "", "UTF-8", sub = "?")
    as.character(jsonlite::toJSON(jsonlite::unbox(text)))
  }

  fault <- function(kind, detail) {
    structure(
      class = c("appliance_fault", "error", "condition"),
      list(message = detail, call = NULL, kind = kind)
    )
  }

  # Packages of well-known models whose class is not called like them.
  homes <- c(
    gam = "mgcv", svm = "e1071", naiveBayes = "e1071", multinom = "nnet", polr = "MASS", lda = "MASS",
    qda = "MASS", rlm = "MASS", coxph = "survival", survreg = "survival", lognet = "glmnet",
    elnet = "glmnet", cv.glmnet = "glmnet", xgb.Booster = "xgboost", train = "caret", ksvm = "kernlab",
    C5.0 = "C50", model_fit = "parsnip", workflow = "workflows"
  )

  # Load the package whose predict() this model needs.
  find_predict <- function(fit, file) {
    home <- attr(class(fit), "package") # of an S4 class
    if (!is.null(home)) {
      loadNamespace(home)
      return(invisible())
    }
    for (class in class(fit)) {
      if (!is.null(utils::getS3method("predict", class, optional = TRUE))) return(invisible())
      home <- if (class %in% names(homes)) homes[[class]] else class
      if (requireNamespace(home, quietly = TRUE)) return(invisible())
      if (class %in% names(homes)) loadNamespace(home) # which says that it is missing
    }
    kind <- class(fit)[1]
    if (is.object(fit)) loadNamespace(kind)
    stop(fault("entry", paste0("'", file, "' holds a ", kind, ", for which R has no predict().")))
  }

  # The function that answers calls for a fitted model: a table in, a prediction a row out.
  fitted_predictor <- function(file, folder) {
    type <- Sys.getenv("APPLIANCE_TYPE")
    if (!nzchar(type)) type <- NULL
    if (!file.exists(file.path(folder, file))) {
      stop(fault("entry", paste0("The artifact has no file '", file, "'.")))
    }
    fit <- tryCatch(
      readRDS(file.path(folder, file)),
      error = function(error) {
        reason <- conditionMessage(error)
        stop(fault("entry", paste0("'", file, "' is not what saveRDS wrote: ", reason, ".")))
      }
    )
    find_predict(fit, file)
    if (is.null(type) && inherits(fit, "glm")) type <- "response"
    wanted <- tryCatch(all.vars(stats::delete.response(stats::terms(fit))), error = function(e) NULL)
    function(inputs) {
      rows <- table_of(inputs, wanted)
      absent <- setdiff(wanted, names(rows))
      if (length(absent)) {
        stop(fault("input", paste0("The rows have no column '", paste(absent, collapse = "', '"), "'.")))
      }
      more <- if (!is.null(type)) list(type = type)
      found <- do.call(stats::predict, c(list(fit, rows), more))
      if (is.matrix(found) && ncol(found) == 1) found <- found[, 1]
      if (is.matrix(found) && !is.null(colnames(found))) found <- as.data.frame(found)
      list(predictions = if (is.atomic(found) && !is.matrix(found)) I(unname(found)) else found)
    }
  }

  # The table in what a call sent; `wanted` names the columns of rows that come as plain lists.
  table_of <- function(inputs, wanted) {
    wrong <- function(reason) stop(fault("input", paste0("The body holds no table: ", reason, ".")))
    if (is.character(inputs)) {
      return(tryCatch(
        utils::read.csv(text = inputs, check.names = FALSE),
        error = function(error) wrong(conditionMessage(error))
      ))
    }
    if (!is.list(inputs)) wrong("it is neither JSON nor text/csv")
    if (!is.null(inputs$dataframe_split)) inputs <- inputs$dataframe_split
    forms <- c("rows", "data", "records", "dataframe_records", "instances", "inputs", "columns")
    form <- forms[forms %in% names(inputs)][1]
    if (!is.na(form) && is.list(inputs[[form]])) {
      if (form %in% c("rows", "data") && length(inputs$columns)) wanted <- unlist(inputs$columns)
      inputs <- inputs[[form]]
    }
    if (!length(inputs)) wrong("it is empty")
    if (is.null(names(inputs))) inputs <- columns_of(inputs, wanted, wrong)
    sizes <- vapply(inputs, length, 0L)
    if (any(sizes != sizes[1])) wrong("its columns are not equally long")
    as.data.frame(lapply(inputs, column_of, wrong), optional = TRUE)
  }

  # Columns from rows: objects, which may lack values, or lists in the order of `wanted`.
  columns_of <- function(rows, wanted, wrong) {
    if (!all(vapply(rows, is.list, NA))) wrong("a row is an object of named values, or a list")
    keys <- unique(unlist(lapply(rows, names)))
    if (is.null(keys)) {
      keys <- wanted
      if (any(lengths(rows) != length(keys))) {
        wrong(paste0("a row has ", length(keys), " values: ", paste(keys, collapse = ", ")))
      }
      rows <- lapply(rows, stats::setNames, keys)
    }
    if (!all(vapply(rows, function(row) !is.null(names(row)), NA))) wrong("some rows have no names")
    stats::setNames(lapply(keys, function(key) lapply(rows, `[[`, key)), keys)
  }

  # One column from its JSON values; null is NA.
  column_of <- function(values, wrong) {
    if (!all(vapply(values, function(one) is.null(one) || (is.atomic(one) && length(one) == 1), NA))) {
      wrong("a value is a number, a text, true, false or null")
    }
    values[vapply(values, is.null, NA)] <- NA
    unlist(values)
  }

  # The function that answers calls, made from "file.R:name" or "@rds:file".
  predictor <- function(entry, folder) {
    if (startsWith(entry, "@rds:")) return(fitted_predictor(substring(entry, 6), folder))
    file <- sub(":[^:]*$", "", entry)
    name <- sub("^.*:", "", entry)
    if (!file.exists(file.path(folder, file))) {
      stop(fault("entry", paste0("The artifact has no file '", file, "'.")))
    }
    sys.source(file.path(folder, file), globalenv(), keep.source = FALSE)
    target <- get0(name, globalenv(), inherits = FALSE)
    if (!is.function(target)) {
      stop(fault("entry", paste0("'", file, "' has no function '", name, "'.")))
    }
    made <- target(folder)
    predict <- if (is.function(made)) made else if (is.list(made)) made[["predict"]]
    if (!is.function(predict)) {
      stop(fault("entry", paste0("'", entry, "' returned no function and no list with predict.")))
    }
    predict
  }

  inputs_of <- function(content_type, body) {
    media <- tolower(trimws(sub(";.*", "", content_type)))
    is_json <- media == "application/json" || endsWith(media, "+json")
    if (!is_json && !startsWith(media, "text/")) return(body)
    wrong <- function(reason) {
      stop(fault("input", paste0("The body is not valid ", media, ": ", reason, ".")))
    }
    if (any(body == as.raw(0))) wrong("it holds a NUL, which R has no text for")
    text <- rawToChar(body)
    Encoding(text) <- "UTF-8"
    if (!validUTF8(text)) wrong("not UTF-8")
    if (!is_json) return(text)
    if (grepl("^[[:space:]]*$", text)) wrong("empty")
    tryCatch(
      jsonlite::parse_json(text, simplifyVector = FALSE),
      error = function(error) wrong(gsub("[[:space:]]+", " ", substr(conditionMessage(error), 1, 300)))
    )
  }

  # Numbers as JSON, exact: 17 digits where 15 are not enough (jsonlite stops at 15).
  numbers <- function(values) {
    if (is.integer(values)) return(ifelse(is.na(values), "null", as.character(values)))
    text <- sprintf("%.15g", values)
    inexact <- is.finite(values) & as.numeric(text) != values
    text[inexact] <- sprintf("%.17g", values[inexact])
    text[!is.finite(values)] <- "null"
    text
  }

  array <- function(texts) paste0("[", paste(texts, collapse = ","), "]")

  # A value as JSON: data frames as arrays of rows, matrices as arrays of arrays.
  json <- function(value) {
    if (is.null(value)) return("null")
    if (is.data.frame(value)) {
      value <- lapply(seq_len(nrow(value)), function(row) lapply(value, `[[`, row))
    }
    if (is.list(value)) {
      texts <- vapply(value, json, "")
      if (is.null(names(value))) return(array(texts))
      keys <- vapply(names(value), quoted, "")
      return(paste0("{", paste(keys, texts, sep = ":", collapse = ","), "}"))
    }
    if (is.factor(value) || inherits(value, c("Date", "POSIXt"))) value <- as.character(value)
    if (is.matrix(value)) {
      return(array(vapply(seq_len(nrow(value)), function(row) json(I(unname(value[row, ]))), "")))
    }
    texts <- if (is.character(value)) {
      ifelse(is.na(value), "null", vapply(value, quoted, ""))
    } else if (is.logical(value)) {
      ifelse(is.na(value), "null", ifelse(value, "true", "false"))
    } else if (is.numeric(value)) {
      numbers(unclass(value))
    } else {
      stop(fault("unsupported", paste0("The answer cannot be sent: it holds a ", class(value)[1], ".")))
    }
    if (length(value) == 1 && !inherits(value, "AsIs")) texts else array(texts)
  }

  # Content type and bytes of what predict returned.
  answer_of <- function(answer) {
    if (is.raw(answer)) return(list("application/octet-stream", answer))
    if (is.character(answer) && length(answer) == 1 && !is.na(answer) && !inherits(answer, "AsIs")) {
      return(list("text/plain; charset=utf-8", charToRaw(enc2utf8(answer))))
    }
    list("application/json", charToRaw(enc2utf8(json(answer))))
  }

  report <- function(id, error, calls) {
    if (inherits(error, "appliance_fault")) {
      kind <- error$kind
      detail <- error$message
    } else {
      message <- conditionMessage(error)
      detail <- paste0(class(error)[1], ": ", message)
      kind <- "raised"
      if (grepl("cannot allocate|memory exhausted", message)) kind <- "memory"
      if (inherits(error, "packageNotFoundError")) kind <- "import"
    }
    missing <- if (kind == "import") error$package else ""
    trace <- vapply(calls, function(call) substr(deparse(call)[1], 1, 200), "")
    trace <- utils::tail(trace[!is.na(trace)], 20)
    send(paste0(
      "{\"type\":\"ERR\",\"id\":", quoted(id), ",\"kind\":\"", kind, "\",\"detail\":",
      quoted(substr(detail, 1, 1500)), ",\"missing\":", quoted(missing), ",\"trace\":[",
      paste(vapply(trace, quoted, ""), collapse = ","), "]}"
    ))
  }

  # The value of an expression, or NULL after having reported what went wrong with it.
  guarded <- function(id, expression) {
    depth <- sys.nframe()
    calls <- list()
    tryCatch(
      withCallingHandlers(expression, error = function(error) {
        found <- sys.calls()
        ours <- depth + 6 # this function's own machinery, below and above the model's calls
        if (length(found) > ours + 2) calls <<- found[(ours + 1):(length(found) - 2)]
      }),
      error = function(error) {
        report(id, error, calls)
        NULL
      }
    )
  }

  # What is being answered, and what it may call; the number of calls so far.
  open <- list(request = "", limits = NULL, count = 0)

  # The answer of another model of the same tenant; `content_type` says what the inputs are, where it is
  # not what they would be. R has one thread, so one call is open at a time.
  call_model <- function(target, inputs = NULL, content_type = NULL) {
    refuse <- function(detail, code = "", status = 0L) {
      kind <- c("call_failed", "error", "condition")
      stop(structure(class = kind, list(message = detail, call = NULL, code = code, status = status)))
    }
    if (!nzchar(Sys.getenv("APPLIANCE_CALLS"))) {
      refuse("Models call others where they declare calls = [\"OTHER\"].")
    }
    limits <- runner$open$limits
    if (is.null(limits)) refuse("Models are called while a request is answered only.")
    content <- answer_of(inputs)
    if (length(content[[2]]) > limits$body_bytes_max) {
      refuse(paste0("The body is over ", limits$body_bytes_max, " bytes."), "too-large", 413L)
    }
    runner$open$count <- runner$open$count + 1
    id <- paste0("c", runner$open$count)
    media <- if (is.null(content_type)) content[[1]] else content_type
    send(paste0(
      "{\"type\":\"CALL\",\"id\":\"", id, "\",\"req\":", quoted(runner$open$request),
      ",\"target\":", quoted(substr(target, 1, 140)),
      ",\"content_type\":", quoted(substr(media, 1, 256)), "}"
    ), content[[2]])
    repeat {
      answer <- receive()
      if (identical(answer$header$id, id)) break # else that of a call which was given up
    }
    header <- answer$header
    if (header$type == "ERR") refuse(header$detail, header$code, header$status)
    inputs_of(header$content_type, answer$body)
  }

  microseconds <- function(started) format(round((proc.time()[[3]] - started) * 1e6), scientific = FALSE)

  serve <- function() {
    started <- proc.time()[[3]]
    if (nzchar(Sys.getenv("APPLIANCE_DEPS"))) .libPaths(Sys.getenv("APPLIANCE_DEPS"))
    attach(list(call_model = call_model), name = "appliance", warn.conflicts = FALSE)
    predict <- guarded("", predictor(Sys.getenv("APPLIANCE_ENTRY"), Sys.getenv("APPLIANCE_PATH")))
    if (!is.null(predict)) {
      send(paste0("{\"type\":\"READY\",\"compute_us\":", microseconds(started), "}"))
    }
    repeat {
      request <- receive()
      id <- request$header$id
      if (request$header$type != "REQ") next # the answer to a call which was given up
      runner$open[c("request", "limits")] <- list(id, request$header$calls)
      started <- proc.time()[[3]]
      answer <- guarded(id, answer_of(predict(inputs_of(request$header$content_type, request$body))))
      request$body <- NULL
      runner$open["limits"] <- list(NULL)
      flush(stdout())
      if (is.null(answer)) next
      send(paste0(
        "{\"type\":\"RES\",\"id\":", quoted(id), ",\"content_type\":", quoted(answer[[1]]),
        ",\"compute_us\":", microseconds(started), "}"
      ), answer[[2]])
      answer <- NULL
    }
  }

  serve()
})
