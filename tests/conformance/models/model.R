# The conformance model: text is a command, anything else comes back.
load_model <- function(path) {
  held <- list()
  list(predict = function(inputs) {
    if (is.raw(inputs)) return(rev(inputs))
    if (!is.character(inputs)) return(inputs)
    word <- sub(" .*", "", inputs)
    rest <- sub("^[^ ]* ?", "", inputs)
    switch(word,
      raise = stop("as asked"),
      exit = quit(save = "no", status = as.integer(rest)),
      spin = repeat NULL,
      print = { cat(rest, "\n", sep = ""); "printed" },
      noise = { for (line in 1:2000) cat(strrep("x", 1000), "\n", sep = ""); "done" },
      nan = list(NaN, list(x = Inf), 1.5),
      eat = repeat held[[length(held) + 1]] <<- numeric(1e6) + 1,
      read = paste(readLines(rest), collapse = "\n"),
      run = paste(system(rest, intern = TRUE), collapse = "\n"),
      unsendable = function() 1,
      inputs
    )
  })
}
