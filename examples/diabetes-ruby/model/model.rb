# frozen_string_literal: true

require 'json'

# Ridge regression: coefficients fitted elsewhere, applied here.
class Model
  def initialize(path)
    fitted = JSON.parse(File.read(File.join(path, 'coefficients.json')))
    @weights = fitted['weights']
    @intercept = fitted['intercept']
  end

  def predict(inputs)
    { progression: inputs['rows'].map { |row| progression(row) } }
  end

  private

  def progression(row)
    raise ArgumentError, "a row has #{@weights.size} numbers" unless row.size == @weights.size

    row.zip(@weights).sum(@intercept) { |value, weight| value * weight }
  end
end
