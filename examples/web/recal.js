// ONNX files of recal: their record, their probe, and the preparation of pictures. Needs no page.

const TEXTS = ["form", "weights_sha256", "checkpoint_sha256", "sha256"];
const INTERPOLATIONS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
  lanczos: { support: 3, weight: (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

/** Return the entries `recal.*` of an ONNX file's metadata as one object; bytes is a Uint8Array. */
export function readRecord(bytes) {
  const record = {};
  for (const [field, entry] of fields(bytes)) {
    if (field !== 14) continue; // metadata_props of ModelProto
    const [key, value] = [1, 2].map((number) => {
      const found = [...fields(entry)].find(([name]) => name === number);
      return new TextDecoder().decode(found?.[1] ?? new Uint8Array());
    });
    if (!key.startsWith("recal.")) continue;
    const name = key.slice("recal.".length);
    record[name] = TEXTS.includes(name) ? value : JSON.parse(value);
  }
  if (!record.probe || !record.model || !record.options || !record.variants) {
    throw new Error("expected an ONNX file that recal wrote, got one without its record");
  }
  return record;
}

// Yield [number, content] of each field of a protobuf message that has a length.
function* fields(bytes) {
  let at = 0;
  const number = () => {
    for (let value = 0, scale = 1; ; scale *= 128) {
      if (at >= bytes.length) throw new Error("expected an ONNX file, got another or a damaged one");
      const byte = bytes[at++];
      value += (byte & 127) * scale;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const tag = number();
    const kind = tag % 8;
    if (kind === 2) {
      const length = number();
      if (at + length > bytes.length) throw new Error("expected a whole ONNX file, got a part of one");
      yield [Math.floor(tag / 8), bytes.subarray(at, at + length)];
      at += length;
    } else if (kind === 0) number();
    else if (kind === 1 || kind === 5) at += kind === 1 ? 8 : 4;
    else throw new Error("expected an ONNX file, got another or a damaged one");
  }
}

/** Return the first `count` bytes of the noise that probes are made of. */
export function noiseBytes(count) {
  return Uint8Array.from({ length: count }, (_, i) => {
    let x = Math.imul(i ^ (i >>> 16), 0x7feb352d);
    x = Math.imul(x ^ (x >>> 15), 0x846ca68b);
    return (x ^ (x >>> 16)) >>> 24;
  });
}

const takesPixels = ({ options }) => options.uint8 || Boolean(options.preprocess);

/** Run a file on one input, as `variant` of a switchable file; return its output as a tensor. */
export async function run(ort, session, record, data, shape, variant) {
  const kind = takesPixels(record) ? "uint8" : "float32";
  const feeds = { [session.inputNames.find((name) => name !== "variant")]: new ort.Tensor(kind, data, shape) };
  if (record.variants.length > 1) {
    feeds.variant = new ort.Tensor("int64", BigInt64Array.of(BigInt(variant)), []);
  }
  return (await session.run(feeds))[session.outputNames[0]];
}

/**
 * Compare a file's outputs on noise with those recorded.
 *
 * Returns whether they are the same, and the largest difference relative to max(1, the largest
 * output) with its place.
 */
export async function checkProbe(ort, session, record) {
  const { shape, largest, outputs } = record.probe;
  const bytes = noiseBytes(shape.reduce((a, b) => a * b));
  const noise = takesPixels(record) ? bytes : Float32Array.from(bytes, (b) => (b - 127.5) / 64);
  const allowed = ["float16", "int8"].includes(record.form) ? 5e-2 : 1e-3;
  let [difference, place] = [0, ""];
  for (const [variant, images] of outputs.entries()) {
    const found = await run(ort, session, record, noise, shape, variant);
    for (const [image, row] of images.entries()) {
      for (const [output, recorded] of row.entries()) {
        const own = found.data[image * found.dims[1] + output];
        const distance = Math.abs(own - recorded) / Math.max(1, largest);
        if (distance <= difference || Number.isNaN(difference)) continue;
        difference = distance;
        place = `${own} instead of ${recorded} at output ${output + 1} of image ${image + 1}`;
        if (outputs.length > 1) place += ` of variant '${record.variants[variant].name}'`;
      }
    }
  }
  return { same: difference <= allowed, difference, allowed, place };
}

/** Turn a picture {width, height, data: RGB bytes} into input data and shape, as the record says. */
export function prepare(picture, record) {
  const { model, options } = record;
  const whole = options.preprocess ? picture : squared(picture, model);
  const { width, height } = whole;
  const data = model.channels === 1 ? grey(whole.data) : whole.data;
  const channels = model.channels;
  if (channels !== 1 && channels !== 3) throw new Error(`the network takes ${channels} channels`);
  if (takesPixels(record)) return { data, shape: [1, height, width, channels] };
  const planes = new Float32Array(data.length);
  for (let c = 0; c < channels; c++) {
    const from = model.channel_order === "bgr" ? channels - 1 - c : c;
    const [mean, std] = [Math.fround(model.mean[from]), Math.fround(model.std[from])];
    for (let i = 0; i < width * height; i++) {
      planes[c * width * height + i] = (Math.fround(data[i * channels + from] / 255) - mean) / std;
    }
  }
  return { data: planes, shape: [1, channels, height, width] };
}

function squared(picture, { family, policy, size, crop_share, crop_mode, interpolation }) {
  const { width, height } = picture;
  if (policy) throw new Error("the network's pictures are prepared by a policy file");
  if (family === "sample" && crop_mode === "none") return middle(picture, size);
  const side = Math.floor(size / crop_share);
  if (crop_mode === "none" && width === size && height === size) return picture;
  if (crop_mode === "center") {
    const [w, h] = [width, height].map((length) => Math.floor((side * length) / Math.min(width, height)));
    return middle(resized(picture, w, h, interpolation), size);
  }
  if (crop_mode === "squash") return middle(resized(picture, side, side, interpolation), size);
  throw new Error(
    crop_mode === "none"
      ? `expected ${size} x ${size} pixels, got ${width} x ${height}. recal export --crop-mode center resizes`
      : `this page cannot prepare pictures by crop mode '${crop_mode}'`,
  );
}

// The middle square, black outside of the picture. Surpluses are halved to even, as torchvision does.
function middle(picture, size) {
  const [left, top] = [picture.width, picture.height].map((length) => {
    const half = (length - size) / 2;
    if (half < 0) return -Math.floor(-half);
    return half % 1 === 0.5 ? 2 * Math.round(half / 2) : half;
  });
  const data = new Uint8Array(size * size * 3);
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const [u, v] = [x + left, y + top];
      if (u < 0 || v < 0 || u >= picture.width || v >= picture.height) continue;
      for (let c = 0; c < 3; c++) data[(y * size + x) * 3 + c] = picture.data[(v * picture.width + u) * 3 + c];
    }
  }
  return { width: size, height: size, data };
}

/**
 * Resize a picture as Pillow does: the filter is widened when it shrinks, weights have 22 binary
 * digits, rows are resized and rounded to bytes before columns. A canvas uses another filter.
 * Pillow 13 takes columns first for some shapes, above all tall ones; levels then differ slightly.
 */
export function resized(picture, width, height, interpolation) {
  const filter = INTERPOLATIONS[interpolation];
  if (!filter) throw new Error(`this page cannot resize by '${interpolation}'`);
  const { data, width: w, height: h } = picture;
  const rows = w === width ? data : along(data, w, width, h, 3, 3 * w, 3 * width, filter);
  const done = h === height ? rows : along(rows, h, height, width, 3 * width, 3, 3, filter);
  return { width, height, data: done };
}

function along(data, from, to, lines, step, line, lineTo, { support, weight }) {
  const scale = from / to;
  const widened = Math.max(1, scale);
  const out = new Uint8Array(to * lines * 3);
  for (let place = 0; place < to; place++) {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support * widened + 0.5));
    const end = Math.min(from, Math.trunc(centre + support * widened + 0.5));
    const weights = [];
    for (let i = first; i < end; i++) weights.push(weight((i - centre + 0.5) / widened));
    const sum = weights.reduce((a, b) => a + b);
    const whole = weights.map((value) => Math.sign(value) * Math.floor(Math.abs(value / sum) * 2 ** 22 + 0.5));
    for (let l = 0; l < lines; l++) {
      for (let c = 0; c < 3; c++) {
        let total = 2 ** 21;
        let at = first * step + l * line + c;
        for (let i = 0; i < whole.length; i++, at += step) total += whole[i] * data[at];
        out[place * step + l * lineTo + c] = Math.min(255, Math.max(0, Math.floor(total / 2 ** 22)));
      }
    }
  }
  return out;
}

function cubic(x) {
  const d = Math.abs(x);
  if (d < 1) return (1.5 * d - 2.5) * d * d + 1;
  return d < 2 ? ((-0.5 * d + 2.5) * d - 4) * d + 2 : 0;
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// Grey as Pillow computes it, in the weights of ITU-R 601-2.
function grey(data) {
  return Uint8Array.from(
    { length: data.length / 3 },
    (_, i) => (data[3 * i] * 19595 + data[3 * i + 1] * 38470 + data[3 * i + 2] * 7471 + 0x8000) >> 16,
  );
}

/** Return probabilities of one output row; logits become them by softmax. */
export function probabilities(output, record) {
  const row = Array.from(output.data.slice(0, output.dims[1]));
  if (record.options.softmax) return row;
  const highest = Math.max(...row);
  const powers = row.map((value) => Math.exp(value - highest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((value) => value / sum);
}
