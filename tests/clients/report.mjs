// Input and output of all programs here: a JSON list of calls, and one JSON line per call with what the client's user sees.

class Seen {
  #began = performance.now();
  text = "";
  id = "";
  pieces = 0;
  finish = null;
  pictures = [];
  data = [];

  /** The client showed more text to the user. */
  show(text) {
    this.text += text;
    this.pieces += 1;
  }

  /** Records the exception that the client threw. */
  failed({ constructor, status, statusCode, code, type, param, message }) {
    Object.assign(this, { error: constructor.name, status: status ?? statusCode ?? null, code, type, param, message });
  }

  end() {
    this.took_s = (performance.now() - this.#began) / 1000;
    return JSON.stringify(this);
  }
}

/** Makes all calls concurrently, each by its kind, and prints the results in order. */
export async function main(kinds) {
  const make = async (call) => {
    const seen = new Seen();
    try {
      await kinds[call.kind](call, seen);
    } catch (error) {
      seen.failed(error);
    }
    return seen.end();
  };
  const lines = await Promise.all(JSON.parse(process.argv[2]).map(make));
  process.stdout.write(lines.join("\n") + "\n", () => process.exit());
}

export const messages = (call) => [{ role: "user", content: call.say }];
