# Train the example: a linear and a logistic regression on the mtcars data that R ships.
#
#   Rscript train.R model
#
# writes mpg.rds and manual.rds into the model folder, and beside it mtcars.csv (the data, so that
# anything else can compute the same) and cars.json (three cars that never were, to ask about).
folder <- commandArgs(trailingOnly = TRUE)[1]
dir.create(folder, showWarnings = FALSE, recursive = TRUE)

# The fitted objects without the environment of this script.
mpg <- lm(mpg ~ wt + hp, data = mtcars)
manual <- glm(am ~ wt, family = binomial, data = mtcars, control = list(epsilon = 1e-14))
saveRDS(mpg, file.path(folder, "mpg.rds"), version = 2)
saveRDS(manual, file.path(folder, "manual.rds"), version = 2)

write.csv(mtcars[c("mpg", "wt", "hp", "am")], file.path(dirname(folder), "mtcars.csv"))
cars <- '{"cars": [{"wt": 2.2, "hp": 95}, {"wt": 3.0, "hp": 150}, {"wt": 4.5, "hp": 230}]}'
writeLines(cars, file.path(dirname(folder), "cars.json"))
