// Numbers and times as people read them. What is not known is a dash.

const DASH = "–";
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const whole = new Intl.NumberFormat("en-US");
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** A count: 12,345. */
export const count = (value) => (value === null || value === undefined ? DASH : whole.format(value));

/** A count of things in words: "1 stream", "2 streams". */
export const things = (value, one, many = `${one}s`) => `${count(value)} ${value === 1 ? one : many}`;

function scaled(value, units, step) {
  let unit = 0;
  while (value >= step - 0.5 && unit + 1 < units.length) {
    value /= step;
    unit += 1;
  }
  const digits = value < 9.95 && (unit > 0 || value % 1 !== 0) ? 1 : 0;
  return [value.toFixed(digits), units[unit]];
}

/** An amount of bytes as [number, unit]; decimal, as networks are. */
export const bytes = (value) => (value === null ? [DASH, ""] : scaled(Math.round(value), UNITS, 1000));

/** Bytes per second in one piece. */
export function byteRate(value) {
  const [number, unit] = bytes(value);
  return unit ? `${number} ${unit}/s` : number;
}

/** A rate as [number, unit]. */
export function rate(value) {
  if (value === null) return [DASH, ""];
  const [number, unit] = scaled(value, ["", "k", "M"], 1000);
  return [number, `${unit}/s`];
}

/** A rate in one piece. */
export const rateText = (value) => rate(value).join("");

/** A time span in its two largest units. */
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  const days = Math.floor(s / 86400);
  return days < 400 ? `${days} d ${Math.floor((s % 86400) / 3600)} h` : `${Math.floor(days / 365)} y ${days % 365} d`;
}

/** A time of day, of a Unix time. */
export const timeOfDay = (unix) => clock.format(new Date(unix * 1000));

/** A day, of a Unix time, in UTC. */
export const day = (unix) => new Date(unix * 1000).toISOString().slice(0, 10);

/** A short time in seconds: 0.5 ms, 25 ms, 1 s. */
export const brief = (seconds) => (seconds < 1 ? `${Number((seconds * 1000).toPrecision(3))} ms` : `${seconds} s`);

/** Upper bound of the part of all counts that is lowest, each count up to its bound; null where there are none. */
export function quantile(counts, bounds, part) {
  const wanted = counts.reduce((sum, each) => sum + each, 0) * part;
  if (!wanted) return null;
  let sum = 0;
  const slot = counts.findIndex((each) => (sum += each) >= wanted);
  return bounds[slot] ?? Infinity;
}

/** A share as percents that never say all where one is missing. */
export function percent(share) {
  if (share === null || share === undefined) return DASH;
  const digits = share < 0.9 ? 0 : share < 0.999 ? 1 : 3;
  const step = 10 ** (digits + 2);
  return `${((share < 1 ? Math.min(Math.round(share * step), step - 1) : step) / 10 ** digits).toFixed(share < 1 ? digits : 0)} %`;
}

/** How many of how many are healthy, as a word for the style. */
export const health = (healthy, all) => (healthy === 0 ? "bad" : healthy < all ? "warn" : "ok");

/** The sign that goes with it, for those who do not see colors. */
export const SIGN = { ok: "✓", warn: "!", bad: "✕" };
