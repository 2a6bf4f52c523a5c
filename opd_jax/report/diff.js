// Two responses to one prompt: which tokens of each the other does not have.

const CELLS = 4e6; // of the table; above it, what lies between the common ends differs as a whole

// Positions of both lists outside their longest common subsequence.
function differences(one, other) {
  let front = 0;
  while (front < one.length && front < other.length && one[front] === other[front]) front += 1;
  let back = 0;
  while (
    back < one.length - front &&
    back < other.length - front &&
    one.at(-1 - back) === other.at(-1 - back)
  )
    back += 1;
  const left = one.slice(front, one.length - back);
  const right = other.slice(front, other.length - back);
  const apart = [
    new Set(left.map((_, at) => front + at)),
    new Set(right.map((_, at) => front + at)),
  ];
  if (left.length * right.length > CELLS) return apart;
  for (const [a, b] of common(left, right)) {
    apart[0].delete(front + a);
    apart[1].delete(front + b);
  }
  return apart;
}

function common(left, right) {
  const width = right.length + 1;
  const best = new Uint16Array((left.length + 1) * width);
  for (let a = left.length - 1; a >= 0; a -= 1) {
    for (let b = right.length - 1; b >= 0; b -= 1) {
      best[a * width + b] =
        left[a] === right[b]
          ? 1 + best[(a + 1) * width + b + 1]
          : Math.max(best[(a + 1) * width + b], best[a * width + b + 1]);
    }
  }
  const pairs = [];
  for (let a = 0, b = 0; a < left.length && b < right.length;) {
    if (left[a] === right[b]) pairs.push([a++, b++]);
    else if (best[(a + 1) * width + b] >= best[a * width + b + 1]) a += 1;
    else b += 1;
  }
  return pairs;
}

// The k-th response to a prompt meets the k-th of the other run.
function paired(rows, others) {
  const key = (seen, row) => {
    const number = seen.get(row.prompt) ?? 0;
    seen.set(row.prompt, number + 1);
    return JSON.stringify([row.prompt, number]);
  };
  const there = new Map();
  const seen = [new Map(), new Map()];
  for (const row of others) there.set(key(seen[0], row), row);
  return new Map(rows.map((row) => [row, there.get(key(seen[1], row))]));
}
