// A map's JSON, checked before anything is shown. The format is described in docs/seeing-data.md.

const VERSION = 1;

/** What is wrong with a file, for people. */
export class MapError extends Error {}

function kind(value) {
  if (value === null) return "null";
  if (value === undefined) return "missing";
  if (Array.isArray(value)) return "a list";
  return { string: "text", number: "a number", boolean: "true or false", object: "an object" }[typeof value];
}

function expect(holds, value, place, wanted) {
  if (!holds) throw new MapError(`${place} is ${kind(value)}, expected ${wanted}.`);
}

function text(value, place, otherwise) {
  if (value === undefined && otherwise !== undefined) return otherwise;
  expect(typeof value === "string", value, place, "text");
  return value;
}

function list(value, place, length) {
  expect(Array.isArray(value), value, place, "a list");
  if (length !== undefined && value.length !== length) {
    throw new MapError(`${place} has ${value.length.toLocaleString("en")} entries, expected ${length.toLocaleString("en")}.`);
  }
  return value;
}

function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

function readRow(row, at) {
  expect(isObject(row), row, `rows[${at}]`, "an object");
  const turns = list(row.turns, `rows[${at}].turns`).map((turn, number) => {
    const place = `rows[${at}].turns[${number}]`;
    expect(isObject(turn), turn, place, "an object");
    return { role: text(turn.role, `${place}.role`), text: text(turn.text, `${place}.text`), omitted: Number(turn.omitted) || 0 };
  });
  if (row.metadata !== undefined) expect(isObject(row.metadata), row.metadata, `rows[${at}].metadata`, "an object");
  const optional = (name) => text(row[name], `rows[${at}].${name}`, "");
  return {
    id: optional("id"), source: optional("source"), split: optional("split"), licence: optional("licence"),
    reason: optional("reason"), detail: optional("detail"), metadata: row.metadata ?? {}, turns,
  };
}

/** The points, moved to the middle and scaled: nearly all lie within 0.85, and a few far ones do not make the rest small. */
function readPoints(points, place, numRows) {
  const read = Float32Array.from(list(points, place, numRows * 3));
  const axes = [[], [], []];
  for (let at = 0; at < read.length; at += 1) {
    if (typeof points[at] !== "number" || !Number.isFinite(read[at])) {
      throw new MapError(`${place}[${at}] is ${kind(points[at])}, expected a number.`);
    }
    axes[at % 3].push(read[at]);
  }
  const middle = axes.map((values) => {
    const sorted = Float32Array.from(values).sort();
    const [low, high] = [0.01, 0.99].map((part) => sorted[Math.round(part * (sorted.length - 1))]);
    return (low + high) / 2;
  });
  const radii = new Float32Array(numRows);
  for (let at = 0; at < read.length; at += 1) read[at] -= middle[at % 3];
  for (let at = 0; at < numRows; at += 1) radii[at] = Math.hypot(read[at * 3], read[at * 3 + 1], read[at * 3 + 2]);
  radii.sort();
  const scale = Math.max(radii[Math.round(0.985 * (numRows - 1))] / 0.85, radii[numRows - 1] / 1.6, 1e-9);
  for (let at = 0; at < read.length; at += 1) read[at] /= scale;
  return read;
}

function readGrouping(grouping, at, numRows) {
  const place = `groupings[${at}]`;
  expect(isObject(grouping), grouping, place, "an object");
  const labels = list(grouping.labels, `${place}.labels`).map((label, number) => text(label, `${place}.labels[${number}]`));
  const of = list(grouping.of, `${place}.of`, numRows);
  for (let row = 0; row < of.length; row += 1) {
    if (!Number.isInteger(of[row]) || of[row] < 0 || of[row] >= labels.length) {
      throw new MapError(`${place}.of[${row}] is ${JSON.stringify(of[row])?.slice(0, 40)}, expected a whole number below ${labels.length}.`);
    }
  }
  const name = text(grouping.name, `${place}.name`);
  return { name, title: text(grouping.title, `${place}.title`, name), labels, of, ordered: grouping.ordered === true };
}

/** The map in a JSON value. MapError says which field is wrong. */
export function readMap(value) {
  if (!isObject(value) || value.tunesmith_map === undefined) {
    throw new MapError("This is no map: the field tunesmith_map is missing. A map is made with: tunesmith data map IN --points map.json");
  }
  if (value.tunesmith_map !== VERSION) {
    throw new MapError(`This map has the format version ${JSON.stringify(value.tunesmith_map)?.slice(0, 40)}, and this page reads version ${VERSION}. Make the map again with the same tunesmith as the page.`);
  }
  const rows = list(value.rows, "rows").map(readRow);
  if (!rows.length) throw new MapError("The map has no rows.");
  const projections = list(value.projections, "projections").map((projection, at) => {
    expect(isObject(projection), projection, `projections[${at}]`, "an object");
    const name = text(projection.name, `projections[${at}].name`);
    return {
      name, title: text(projection.title, `projections[${at}].title`, name), note: text(projection.note, `projections[${at}].note`, ""),
      points: readPoints(projection.points, `projections[${at}].points`, rows.length),
    };
  });
  if (!projections.length) throw new MapError("The map has no projection, so its rows have no place.");
  const groupings = list(value.groupings ?? [], "groupings").map((grouping, at) => readGrouping(grouping, at, rows.length));
  if (!groupings.length) groupings.push({ name: "all", title: "All rows", labels: ["all"], of: rows.map(() => 0), ordered: false });
  if (value.counts !== undefined) expect(isObject(value.counts), value.counts, "counts", "an object");
  return {
    title: text(value.title, "title", "Map"), embedding: text(value.embedding, "embedding", ""), counts: value.counts ?? {},
    notes: list(value.notes ?? [], "notes").map((note, at) => text(note, `notes[${at}]`)),
    pending: text(value.pending, "pending", ""), projections, groupings, rows,
  };
}

/** The map in the text of a file. */
export function parseMap(source) {
  if (!source.trim()) throw new MapError("The file is empty.");
  let value;
  try {
    value = JSON.parse(source);
  } catch (error) {
    throw new MapError(`The file is not whole JSON: ${error.message.slice(0, 200)}`);
  }
  return readMap(value);
}

/** The text that the page carries: gzip, base64. */
export async function unpack(packed) {
  const bytes = Uint8Array.fromBase64 ? Uint8Array.fromBase64(packed) : Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
