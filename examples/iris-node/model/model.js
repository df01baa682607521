'use strict';

const fs = require('fs');
const path = require('path');

// Softmax regression: coefficients fitted elsewhere, applied here.
class Model {
  constructor(folder) {
    const text = fs.readFileSync(path.join(folder, 'coefficients.json'), 'utf8');
    Object.assign(this, JSON.parse(text)); // classes, weights [class][feature], intercepts
  }

  predict({ rows }) {
    return { classes: this.classes, probabilities: rows.map((row) => this.probabilities(row)) };
  }

  probabilities(row) {
    const scores = this.weights.map(
      (weights, n) => weights.reduce((sum, weight, at) => sum + weight * row[at], this.intercepts[n]),
    );
    const largest = Math.max(...scores);
    const powers = scores.map((score) => Math.exp(score - largest));
    const total = powers.reduce((sum, power) => sum + power, 0);
    return powers.map((power) => power / total);
  }
}

module.exports = { Model };
